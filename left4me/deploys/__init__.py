"""The concerns of a deploy, one module each; deploy.py calls them in order."""
