"""Requests to servers, an expert's and a policy's: the one package that imports an HTTP client.

Downloads of models and benchmarks are not among them: transformers and huggingface_hub fetch those.
"""
