"""`python -m components registry`: show, promote, roll back and export registered versions."""
