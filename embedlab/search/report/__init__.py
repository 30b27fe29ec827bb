"""What runs say, for people to look at: one page that works offline, and its figures as pictures and in TensorBoard."""
