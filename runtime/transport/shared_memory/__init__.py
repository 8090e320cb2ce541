"""Channels between processes of one host: the sender writes into the receiver's memory.

    sending end                                   receiving end
    ---------------------------------------       ----------------------------------
                          <-- where, how large -- a receive is posted
    copies the payload there
                          -- filled ----------->  its wait is over

So a message is copied once, and a send ends only after its receive has been posted. Both go over a
socket, which also ends with the process at its other end, and so interrupts whoever waits.
"""
