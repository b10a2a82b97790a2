"""Exported programs (`.pt2`) as plain values: reading them, finding layers, freezing them."""
