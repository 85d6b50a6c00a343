"""A resource that is hashed once."""

from opentelemetry.sdk.resources import Resource


class HashedResource(Resource):
    """Equal to the resource it is made of, and hashed as that is.

    The SDK's encoder hashes the resource of every span and log record, and the SDK's hash writes
    all attributes as JSON. They never change.
    """

    def __init__(self, resource: Resource) -> None:
        super().__init__(resource.attributes, resource.schema_url)
        self._hash = super().__hash__()

    def __eq__(self, other: object) -> bool:
        return self is other or super().__eq__(other)

    def __hash__(self) -> int:
        return self._hash
