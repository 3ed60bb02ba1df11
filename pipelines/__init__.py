"""The method as a Kubeflow pipeline: compiled, run on this machine, or submitted to a cluster.

`python -m pipelines --help` is the way in.
"""
