# SPDX-License-Identifier: LGPL-2.1-or-later
"""The registry: which VMs are protected, and what each is made of; a volume of its own on the
shared storage."""
