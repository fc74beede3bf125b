"""The peers' side, as their documentation says it is done."""
