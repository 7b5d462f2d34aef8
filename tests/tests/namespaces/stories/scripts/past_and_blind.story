# Old segments and blind attacks (RFC 5961) are answered with an ACK; only a RST with the exact number resets.
connect
> S 0 sackOK
+20ms < S. 0 ack 1 mss 1400 wscale 7 sackOK
> . 1 ack 1
# The SYN-ACK is retransmitted because the ACK was lost.
+1.5s < S. 0 ack 1
> . 1 ack 1
# A SYN in the window.
+1.5s < S 5000
> . 1 ack 1
# A RST in the window, but not at its left edge.
+1.5s < R 50
> . 1 ack 1
# A RST outside of the window.
+1.5s < R 99999999
quiet 100ms
state Established
+1.5s < R 1
error reset
finished
