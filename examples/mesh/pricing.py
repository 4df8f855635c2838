"""Knows the price of everything."""

import time

import articles
import grpc
import mesh
import shop_pb2
import shop_pb2_grpc

import provenance

SLOW_SECONDS = 0.2


class Pricing(shop_pb2_grpc.PricingServicer):
    """Two operations, so that one can get slow and the other not."""

    def Quote(self, request: shop_pb2.QuoteRequest, context: grpc.ServicerContext) -> shop_pb2.Price:  # noqa: N802
        """The price of some of one article. The sleep is the demo's incident 'slow'."""
        if request.sku not in articles.PRICES_CENTS:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no article {request.sku}")
        if mesh.incident("slow"):
            time.sleep(SLOW_SECONDS)
        return shop_pb2.Price(sku=request.sku, amount_cents=articles.PRICES_CENTS[request.sku] * request.quantity)

    def Catalog(self, request: shop_pb2.CatalogRequest, _context: grpc.ServicerContext) -> shop_pb2.CatalogReply:  # noqa: N802
        """The first `limit` articles."""
        prices = list(articles.PRICES_CENTS.items())[: request.limit]
        return shop_pb2.CatalogReply(prices=[shop_pb2.Price(sku=sku, amount_cents=cents) for sku, cents in prices])


if __name__ == "__main__":
    telemetry = provenance.instrument(service_name="pricing")
    try:
        mesh.serve_grpc(lambda server: shop_pb2_grpc.add_PricingServicer_to_server(Pricing(), server))
    finally:
        telemetry.shutdown()
