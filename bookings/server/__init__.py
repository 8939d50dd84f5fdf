"""Turns bytes into requests and responses into bytes.

    http1        HTTP/1.1 grammar and serialization, without I/O
    hosts        which Host names the server accepts
    log_pipe     keeps a standard error that is not read from blocking
    request_log  one line per request
    connection   one client: reads, deadlines, responses
    server       accepts connections, bounds their number, shuts down
    unix_socket  a listening socket with a path
    signals      signals that end the server
    worker       one process that serves
    workers      keeps several workers alive that share a listening socket

No module here knows about SQL or the fields of a booking.
"""
