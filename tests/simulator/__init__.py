"""A whole group in one thread, from one seed: the core, the disk code, and all that can go wrong.

In reading order: `agenda` virtual time; `plan` what a seed means; `network` `faults` what goes
wrong; `member` one instance; `machine` what the log is for; `clients` who use it; `world` all of
them together; `invariants` what must hold after every event; `histories` `revisions`
`wing_gong` what clients may have seen; `shrink` the smallest plan that still fails; `mutants`
the broken variants that all this must catch.
"""
