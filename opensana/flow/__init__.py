"""Flow matching (paper 3.2): the formulas that training and sampling share."""
