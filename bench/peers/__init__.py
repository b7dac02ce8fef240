"""Proxies written for the benches alone, where no package of the host has one."""
