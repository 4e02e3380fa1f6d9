"""What `make lint` runs beside the linters."""
