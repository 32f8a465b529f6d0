"""The served model: everything that answers requests and needs neither Ray nor HTTP."""
