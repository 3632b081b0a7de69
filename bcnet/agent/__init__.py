"""What runs on a device: jobs in, answers out. The same code serves this machine and, over ssh, another.

Standard library and the device's own runtimes only, and the syntax of Python 3.6, which JetPack 4 has:
the folder is packed into one file and copied there. Nothing here imports the rest of bcnet.
"""
