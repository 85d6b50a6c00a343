"""ChatAnthropic with clients of its own, which do not trace themselves."""

from functools import cached_property

import anthropic
from langchain_anthropic import ChatAnthropic


class OwnedChatAnthropic(ChatAnthropic):
    """ChatAnthropic as this service needs it.

    The SDK makes a `gen_ai` span of every request by default; beside the span of our own
    telemetry that would count every token twice. And LangChain shares its HTTP clients over
    the whole process, so that closing one model would break the next.
    """

    @cached_property
    def _client(self) -> anthropic.Client:
        return anthropic.Client(**self._client_params, open_telemetry=False)

    @cached_property
    def _async_client(self) -> anthropic.AsyncClient:
        return anthropic.AsyncClient(**self._client_params, open_telemetry=False)

    async def aclose(self) -> None:
        """Close the connections of the clients that were used."""
        if "_client" in self.__dict__:
            self._client.close()
        if "_async_client" in self.__dict__:
            await self._async_client.close()
