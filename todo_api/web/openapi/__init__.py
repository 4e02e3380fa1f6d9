"""The OpenAPI document: what follows from the operations and the schemas that views declare."""
