"""Crediting the Locksmith: the code behind a book on when and how models think."""
