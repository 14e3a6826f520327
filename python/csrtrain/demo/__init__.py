"""`csrkern demo`: a reverse dictionary over WordNet definitions."""
