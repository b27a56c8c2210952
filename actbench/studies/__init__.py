"""What schemes do to a network at fixed weights: gradient noise, how activations lie in their blocks, and tuning."""
