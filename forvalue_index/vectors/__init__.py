"""Pure tensor maths: from the factors of tokens to influence, exact or as a vector."""
