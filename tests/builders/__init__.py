"""Builders of models and files that the tests are about."""
