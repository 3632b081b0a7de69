"""The agent, which runs on a device: jobs in, answers out. Used on this machine and, over ssh, on others.

It uses only the standard library and the device's runtimes, and the syntax of Python 3.6 (JetPack 4): the
folder is packed into one file and copied to the device. Nothing here imports the rest of bcnet.
"""
