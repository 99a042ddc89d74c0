// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The last hop before the production network: `guard` judges each frame by the stamp it carries, and takes
 * the stamp off. It trusts nobody: not the mover, not the order of the frames, not their source.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "common.h"
#include "trace.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct hf_guard);
} guard_state SEC(".maps");

/* The number that the stamp is the end of: the one nearest to what is committed. 0: the frame has no stamp. */
static __always_inline __u64 number_of(struct __sk_buff *skb, __u64 committed)
{
	if (!skb->vlan_present || skb->vlan_proto != bpf_htons(HF_STAMP_PROTO))
		return 0;
	return committed + (__s16)((__u16)skb->vlan_tci - (__u16)committed);
}

#define TELL(point) HF_TELL(skb, g, point, number_of(skb, g->committed), g->committed, g->term)

/* TC ingress of the out tap, before the bridge. */
SEC("tc")
int guard(struct __sk_buff *skb)
{
	__u32 zero = 0;
	__u64 len = skb->len;
	struct hf_guard *g = bpf_map_lookup_elem(&guard_state, &zero);

	if (!g)
		return TC_ACT_SHOT;
	if (!g->term) {
		__sync_fetch_and_add(&g->closed_frames, 1);
		TELL(HF_FENCED);
		return TC_ACT_SHOT;
	}
	if (bpf_ktime_get_ns() >= g->until_ns) {
		__sync_fetch_and_add(&g->expired_frames, 1);
		TELL(HF_EXPIRED);
		return TC_ACT_SHOT;
	}
	if (!skb->vlan_present || skb->vlan_proto != bpf_htons(HF_STAMP_PROTO)) {
		__sync_fetch_and_add(&g->unstamped_frames, 1);
		TELL(HF_UNSTAMPED);
		return TC_ACT_SHOT;
	}
	/* Serial number arithmetic: the gate keeps fewer frames in flight than half of the numbers. */
	if ((__s16)((__u16)g->committed - (__u16)skb->vlan_tci) < 0) {
		__sync_fetch_and_add(&g->early_frames, 1);
		TELL(HF_EARLY);
		return TC_ACT_SHOT;
	}
	TELL(HF_RELEASED);
	if (bpf_skb_vlan_pop(skb)) {
		__sync_fetch_and_add(&g->unstamped_frames, 1);
		return TC_ACT_SHOT;
	}
	__sync_fetch_and_add(&g->passed_frames, 1);
	__sync_fetch_and_add(&g->passed_bytes, len);
	return TC_ACT_OK;
}

char _license[] SEC("license") = "GPL";
