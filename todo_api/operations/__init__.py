"""Routes for operating the service: health, metrics, documentation and pages of problems."""
