"""What is known of the BatchNorm layers of a file: facts, findings, the plan and the record."""
