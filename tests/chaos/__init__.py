"""Real instances, real sockets, signals, and everything between them going wrong.

In reading order: `proxy` stands between members and does to their frames what a bad network
would; `strikes` what goes wrong and when, from a seed; `disks` power cuts;
`clients` who use the group all the while; `judging` what they may have seen, by the simulator's
own checkers; `running` all of them together.
"""
