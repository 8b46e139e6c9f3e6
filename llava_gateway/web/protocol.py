"""uvicorn's HTTP protocol, with one thing changed: what is not HTTP gets its 400 in OpenAI's shape, too."""

import uuid

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from llava_gateway.errors import InvalidRequest

BODY = b'{"error":{"message":"This is not a valid HTTP request.","type":"%b","param":null,"code":null}}' % InvalidRequest.type.encode()


class HttpProtocol(HttpToolsProtocol):
    def send_400_response(self, msg: str) -> None:
        head = (
            "HTTP/1.1 400 Bad Request\r\n"
            f"content-type: application/json\r\ncontent-length: {len(BODY)}\r\n"
            f"x-request-id: {uuid.uuid4().hex}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + BODY)
        self.transport.close()
