"""What several tests share: small runs, searches, corpora and tables."""
