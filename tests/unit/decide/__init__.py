# SPDX-License-Identifier: LGPL-2.1-or-later
"""One decision, state by state: `scoring.decide.decide` of one observation.

A test that names a state asks one decision of a host that has been in it for a while. A
test with a `Life` lives through a story, beat by beat, in virtual time.
"""
