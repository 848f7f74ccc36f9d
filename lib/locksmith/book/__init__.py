"""The book: chapters, claims, figures, pages and the post, from results."""
