# Segments of the past, and blind attacks (RFC 5961): an ACK tells the true numbers; only the exact RST resets.
connect
> S 0 sackOK
+20ms < S. 0 ack 1 mss 1400 wscale 7 sackOK
> . 1 ack 1
# The SYN-ACK again: the ACK was lost.
+1.5s < S. 0 ack 1
> . 1 ack 1
# A SYN within the window.
+1.5s < S 5000
> . 1 ack 1
# A RST within the window, and not at its edge.
+1.5s < R 50
> . 1 ack 1
# A RST outside of it.
+1.5s < R 99999999
quiet 100ms
state Established
+1.5s < R 1
error reset
finished
