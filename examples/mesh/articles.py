"""What the shop sells."""

PRICES_CENTS = {f"sku-{number:03}": 250 + 175 * number for number in range(1, 41)}
