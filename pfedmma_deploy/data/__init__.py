"""Images, data sets, partitions and federations: numpy and Pillow only, never torch.

`datasets.load_dataset` reads a folder or an embedded sample, `federation.build_federation`
divides it among clients, `checks` says what is wrong with either before training starts.
"""
