"""A store that several machines share: its artifacts are at a location, and each machine has a folder with copies.

artifacts/KIND/SERIES/DIGEST/manifest.json   a manifest, written last and only if there is none
files/KIND/SERIES/DIGEST/CONTENT/NAME        the files of an artifact whose content checksum is CONTENT
leases/DIGEST.json                           who builds an artifact or a series now
users/ID.json                                who uses the store, and which series they have used
damaged/ID.json                              manifests of artifacts whose files have other bytes than they say
"""
