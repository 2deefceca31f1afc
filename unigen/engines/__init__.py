"""The engines: each gives the declarations of ``unigen.phases`` the same meaning."""
