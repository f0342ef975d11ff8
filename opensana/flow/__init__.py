"""Flow matching (section 2.2 of the paper): the formulas that training and sampling share."""
