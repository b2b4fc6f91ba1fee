"""From a run to a verified ONNX bundle.

run, merge            the clients of a finished run, as a bundle or as open_clip weights
bundle                a backbone and its clients' adapters become a bundle
bundle_clients        clients join and leave a finished bundle
banks, graph, models  the towers with all clients in them, exported from torch
fusion, precision     other operators, other arithmetic
parity, quality       is the exported model the trained one, and is it still as good
describe, publish     what the bundle says of itself; how it gets its name
"""
