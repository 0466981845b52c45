"""The model: from samples to hidden states, errors and vectors."""
