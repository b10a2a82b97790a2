"""Training checkpoints, edited as inert values: their models, and the optimizers beside them."""
