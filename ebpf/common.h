/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the packet programs and the service share: one struct per program, each the only value of a mapped
 * array, so that the service reads counters and writes commands as plain memory, without a system call.
 * ebpf/state.py mirrors this file; the sizes are checked here, there, and once more when a map is mapped.
 *
 * Everything zero means: shut. No limit set is no room, no ifindex is no way out, no term is a closed guard.
 */
#ifndef HOLDFAST_COMMON_H
#define HOLDFAST_COMMON_H

#include <linux/types.h>

/*
 * The stamp: one 802.1ad tag, whose 16 bits are the low bits of the frame's sequence number. It is a tag so
 * that a TCP segment of 64 KiB stays one frame on its way through a tap.
 */
#define HF_STAMP_PROTO 0x88A8

/* Written by the program in the first cache line, by the service in the second. */
struct hf_gate {
	__u64 issued_frames; /* sequence number of the last frame let into the hold; the first is 1 */
	__u64 issued_bytes;
	__u64 overflow_frames; /* dropped: no room left under a limit */
	__u64 overflow_bytes;
	__u64 failed_frames; /* dropped: no memory for the stamp */
	__u64 reserved0[3];

	__u64 released_frames; /* sequence number up to which the hold has been emptied */
	__u64 released_bytes;
	__u64 limit_frames; /* at most 16384: the stamp must stay unambiguous */
	__u64 limit_bytes;
	__u64 hold_ifindex;
	__u64 reserved1[3];
};

struct hf_inbound {
	__u64 passed_frames;
	__u64 passed_bytes;
	__u64 closed_frames; /* dropped: the front is shut, or there is no VM behind it */
	__u64 reserved0[5];

	__u64 open;
	__u64 vm_ifindex;
	__u64 reserved1[6];
};

struct hf_guard {
	__u64 passed_frames;
	__u64 passed_bytes;
	__u64 early_frames;	/* dropped: beyond what is committed */
	__u64 closed_frames;	/* dropped: no term is open */
	__u64 unstamped_frames; /* dropped: never went through the gate */
	__u64 expired_frames;	/* dropped: the lease had run out */
	__u64 reserved0[2];

	__u64 committed; /* sequence number of the last frame that may pass */
	__u64 term;	 /* 0: closed */
	__u64 until_ns;	 /* CLOCK_MONOTONIC; from then on nothing passes */
	__u64 reserved1[5];
};

_Static_assert(sizeof(struct hf_gate) == 128, "hf_gate: change ebpf/state.py too");
_Static_assert(sizeof(struct hf_inbound) == 128, "hf_inbound: change ebpf/state.py too");
_Static_assert(sizeof(struct hf_guard) == 128, "hf_guard: change ebpf/state.py too");

#endif
