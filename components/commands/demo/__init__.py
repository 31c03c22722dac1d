"""`python -m components demo`: a page that shows what a served model reads, and how sure it is."""
