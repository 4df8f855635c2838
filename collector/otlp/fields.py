"""What a serialised message is made of, without decoding it: what decoding will cost is known before it is paid."""


def fields_of(message: bytes | memoryview, most: int) -> tuple[int, bool]:
    """How many fields a message has, those inside of groups too, and whether these are all of it and no group is among them.

    Counts no further than `most` + 1, nor beyond what is no field: what is wrong with it, whoever decodes it says.
    """
    size, at, count, groups = len(message), 0, 0, False
    try:
        while at < size and count <= most:
            wire_type = message[at] & 7
            at = _after_varint(message, at)
            match wire_type:
                case 0:
                    at = _after_varint(message, at)
                case 1:
                    at += 8
                case 2:
                    length, shift = 0, 0
                    while message[at] & 0x80:
                        length |= (message[at] & 0x7F) << shift
                        at, shift = at + 1, shift + 7
                    at += 1 + (length | message[at] << shift)
                case 5:
                    at += 4
                case 3 | 4:  # a group begins or ends: what is between are fields, too
                    groups = True
                case _:
                    break
            count += 1
    except IndexError:
        return count, False
    return count, at == size and not groups


def _after_varint(message: bytes | memoryview, at: int) -> int:
    while message[at] & 0x80:
        at += 1
    return at + 1
