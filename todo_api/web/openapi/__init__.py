"""The OpenAPI document, derived from the operations and schemas that views declare."""
