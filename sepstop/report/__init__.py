"""Tables, figures, pages and model cards of recorded runs."""
