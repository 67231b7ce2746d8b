# SPDX-License-Identifier: LGPL-2.1-or-later
"""The packages of the commit that is HEAD: built, looked at, and installed in clean roots."""
