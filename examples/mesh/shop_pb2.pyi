from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BuyRequest(_message.Message):
    __slots__ = ("sku", "quantity", "card")
    SKU_FIELD_NUMBER: _ClassVar[int]
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    CARD_FIELD_NUMBER: _ClassVar[int]
    sku: str
    quantity: int
    card: str
    def __init__(self, sku: _Optional[str] = ..., quantity: _Optional[int] = ..., card: _Optional[str] = ...) -> None: ...

class RefundRequest(_message.Message):
    __slots__ = ("order_id", "amount_cents")
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_CENTS_FIELD_NUMBER: _ClassVar[int]
    order_id: str
    amount_cents: int
    def __init__(self, order_id: _Optional[str] = ..., amount_cents: _Optional[int] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("order_id", "amount_cents")
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_CENTS_FIELD_NUMBER: _ClassVar[int]
    order_id: str
    amount_cents: int
    def __init__(self, order_id: _Optional[str] = ..., amount_cents: _Optional[int] = ...) -> None: ...

class ChargeRequest(_message.Message):
    __slots__ = ("order_id", "amount_cents", "card")
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_CENTS_FIELD_NUMBER: _ClassVar[int]
    CARD_FIELD_NUMBER: _ClassVar[int]
    order_id: str
    amount_cents: int
    card: str
    def __init__(self, order_id: _Optional[str] = ..., amount_cents: _Optional[int] = ..., card: _Optional[str] = ...) -> None: ...

class PaymentReply(_message.Message):
    __slots__ = ("authorization",)
    AUTHORIZATION_FIELD_NUMBER: _ClassVar[int]
    authorization: str
    def __init__(self, authorization: _Optional[str] = ...) -> None: ...

class QuoteRequest(_message.Message):
    __slots__ = ("sku", "quantity")
    SKU_FIELD_NUMBER: _ClassVar[int]
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    sku: str
    quantity: int
    def __init__(self, sku: _Optional[str] = ..., quantity: _Optional[int] = ...) -> None: ...

class Price(_message.Message):
    __slots__ = ("sku", "amount_cents")
    SKU_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_CENTS_FIELD_NUMBER: _ClassVar[int]
    sku: str
    amount_cents: int
    def __init__(self, sku: _Optional[str] = ..., amount_cents: _Optional[int] = ...) -> None: ...

class CatalogRequest(_message.Message):
    __slots__ = ("limit",)
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    limit: int
    def __init__(self, limit: _Optional[int] = ...) -> None: ...

class CatalogReply(_message.Message):
    __slots__ = ("prices",)
    PRICES_FIELD_NUMBER: _ClassVar[int]
    prices: _containers.RepeatedCompositeFieldContainer[Price]
    def __init__(self, prices: _Optional[_Iterable[_Union[Price, _Mapping]]] = ...) -> None: ...
