"""The autoencoder in the three phases of the DC-AE paper, and its decoder alone."""
