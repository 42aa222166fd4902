"""Planted defects that kernels really have, and sound kernels written differently: what the audit must tell apart."""
