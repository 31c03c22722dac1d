"""`python -m components registry`: show, promote and roll back registered versions."""
